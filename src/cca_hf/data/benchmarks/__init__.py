"""One file per published benchmark: reads its original files into the schema of the package."""
