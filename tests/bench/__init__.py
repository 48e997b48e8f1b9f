"""The figures that the project promises, measured in the lab."""
