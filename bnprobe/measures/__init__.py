"""Measurements that run their own passes and leave the model as it was."""
