"""Singular values of Jacobians."""
