"""One file per published benchmark: from its original files to the schema of the package."""
