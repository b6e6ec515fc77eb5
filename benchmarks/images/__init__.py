"""Images of the documentation, drawn by the model and the modules that ship with the package."""
