"""Whether a model is on the Hugging Face hub, asked once: its client asks half a dozen times, with waits in between."""

from typing import Any

SECONDS = 10.0
"""How long the hub may take to answer."""


def ask_hub(source: str) -> None:
    """Look for a model's config in the cache, and else ask the hub for it, once.

    Raises:
        OSError: if the hub has no such model or cannot be reached. What it has beside a config, and a hub that is busy,
            are left to whoever loads the model.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(huggingface_hub.try_to_load_from_cache(source, "config.json"), str):
        return
    # The hub client has changed its HTTP library before; its own error derives from the base error of the present one.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(source, "config.json"), timeout=SECONDS)
    except EntryNotFoundError:
        return
    except RepositoryNotFoundError as error:
        raise OSError("it has no such model, or wants you to log in: `hf auth login`") from error
    except (OSError, http_error) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status != 429 and status < 500:
            raise OSError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error
