"""The mathematics: tensors in, tensors out. No model, no file, no process group."""
