"""What a call goes on from: records of its own key, and nothing else."""

import ast
import json
from pathlib import Path

import pytest
from repo.tree import ROOT

MACHINE = {"device", "cores", "threads", "system"}
VERSIONS = {"python", "torch", "transformers", "trl", "sources"}
SETTINGS = {"trl_dtype", "precision", "steps"}
COMPARED = ["demo", "sampling-32", "sampling-64", "short"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8}')
    return tmp_path / "model"


def key(model: Path, **other: object) -> dict[str, object]:
    from kept import key_of

    return key_of(model=model, **({"trl_dtype": "auto", "precision": "auto", "steps": 3} | other))


def test_a_key_names_machine_versions_sources_model_and_settings_and_none_is_unknown(model):
    found = key(model)
    assert found.keys() == MACHINE | VERSIONS | SETTINGS | {"model"}
    assert "unknown" not in found.values() and "" not in found.values()
    assert found == key(model) == json.loads(json.dumps(found))


def test_another_configuration_or_setting_is_another_key(model):
    first = key(model)
    assert key(model, steps=2) != first and key(model, precision="bf16") != first
    (model / "config.json").write_text('{"hidden_size": 16}')
    assert {name for name, value in key(model).items() if value != first[name]} == {"model"}


def test_another_line_of_code_is_another_key(tmp_path, monkeypatch):
    import kept

    import outscore

    for name in kept.MEASURING:
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "package").mkdir()
    module = tmp_path / "package" / "__init__.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr(outscore, "__file__", str(module))
    monkeypatch.setattr(kept, "HERE", tmp_path)
    digests = [kept.digest_of_sources()]
    for path in (module, tmp_path / "limit.py"):
        path.write_text("x = 2\n")
        digests.append(kept.digest_of_sources())
    (tmp_path / "comparison.py").write_text("how a table looks")
    assert len(set(digests)) == 3 and kept.digest_of_sources() == digests[-1]


def test_the_sources_are_all_that_a_side_imports_here():
    from kept import MEASURING

    here = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for name in MEASURING:
        tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert imported & here <= set(MEASURING), name


def test_a_call_goes_on_from_its_own_record_and_leaves_the_others(tmp_path):
    from kept import Kept, read

    file = tmp_path / "results-short.json"
    first = Kept(file, "short", {"torch": "1", "steps": 3})
    first.record["rounds"]["trl"] = [[{"seconds": 1.0}]]
    first.save()
    other = Kept(file, "short", {"torch": "2", "steps": 3})
    assert other.record["rounds"] == {}
    assert other.notice == "results-short.json: what is there is of other torch; begun anew"
    other.save()
    again = Kept(file, "short", {"torch": "1", "steps": 3})
    assert again.record["rounds"] == first.record["rounds"] and not again.notice
    anew = Kept(file, "short", {"torch": "1", "steps": 3}, anew=True)
    assert anew.record["rounds"] == {}
    anew.save()
    assert [record["key"]["torch"] for record in read(file) or []] == ["2", "1"]


def test_what_nobody_wrote_down_is_no_calls_own(tmp_path, model):
    from kept import Kept

    file = tmp_path / "results-short.json"
    file.write_text((ROOT / "benchmarks" / "results-short.json").read_text(encoding="utf-8"))
    begun = Kept(file, "short", key(model))
    assert begun.record["rounds"] == {} and "device" in begun.notice and "sources" in begun.notice


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path):
    from kept import Kept

    for text in ('{"workload": "short", "rounds": 1}', "[]"):
        file = tmp_path / "results-short.json"
        file.write_text(text)
        with pytest.raises(SystemExit, match="move it away"):
            Kept(file, "short", {})
        assert file.read_text() == text


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_committed_is_readable_and_invents_nothing(name):
    from comparison import table
    from kept import read

    [record] = read(ROOT / "benchmarks" / f"results-{name}.json") or []
    assert record["key"].keys() == MACHINE | VERSIONS | SETTINGS | {"model"}
    if record["commit"] == "unknown":
        assert {record["key"][each] for each in ("device", "cores", "torch", "trl", "sources", "model")} == {"unknown"}
    assert f"| {name}: " in table(name, record)
