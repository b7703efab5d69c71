"""Features: networks trained or loaded once, cached by the hash of everything they depend on."""
