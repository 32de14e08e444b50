"""Networks from images to maps; each announces `channels`, `strides` and `input_spec`."""
