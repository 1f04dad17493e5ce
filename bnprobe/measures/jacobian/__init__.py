"""Singular values of Jacobians: closed forms, dense, matrix-free."""
