"""Measurements that run their own passes through a model and leave it as they found it."""
