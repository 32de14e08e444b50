"""From files to batches: image lists, decoding, preprocessing, loaders."""
