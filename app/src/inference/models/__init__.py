"""Built-in models: `echo` (no torch), `program` (a saved torch.export program) and `ocr`."""
