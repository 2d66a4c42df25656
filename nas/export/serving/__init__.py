"""A found model behind HTTP, run by onnxruntime: nothing here imports torch."""
