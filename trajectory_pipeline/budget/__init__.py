"""Caps, prices and token estimates."""
