"""Arrays in, arrays out: what the ops are made of where speed matters. Knows nothing of tensors."""
