"""timm's models as this project uses them: named, checked, loaded, and fed with pixels."""
