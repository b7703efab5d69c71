"""It's a (Blind) Match!: vision and language matched without parallel data, by quadratic assignment (CVPR 2025)."""
