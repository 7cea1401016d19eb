"""What only the demonstration and the tests need."""
