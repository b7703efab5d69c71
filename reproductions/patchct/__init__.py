"""PatchCT: multi-label classification with conditional transport between patches and labels (ICCV 2023)."""
