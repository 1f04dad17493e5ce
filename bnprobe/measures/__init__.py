"""Measurements that run their own passes through a model."""
