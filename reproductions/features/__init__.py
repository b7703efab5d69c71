"""Features of images and of texts that several papers share."""
