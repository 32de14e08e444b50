"""From a model and images to a feature store on disk."""
