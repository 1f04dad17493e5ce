"""Measurements of cost: ``python -m benchmarks NAME`` writes its result beside a description of the machine."""
