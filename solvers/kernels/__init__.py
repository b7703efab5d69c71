"""The compiled inner loops: arrays in, arrays out, nothing of the project imported."""
