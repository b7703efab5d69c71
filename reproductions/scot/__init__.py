"""SCOT (Liu et al., CVPR 2020): semantic correspondence by optimal transport between the cells of two images."""
