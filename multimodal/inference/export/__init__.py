"""A model as files that need no code of ours: ONNX, torch.export, safetensors, model.json."""
