"""A trained model as files that other tools run: ONNX and OpenVINO, with a JSON beside and a check of equal numbers."""
