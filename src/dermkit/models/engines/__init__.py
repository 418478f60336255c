"""Inference engines other than torch: ONNX Runtime and OpenVINO, behind one small interface."""
