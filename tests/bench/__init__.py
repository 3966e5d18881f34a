"""Benchmarks: each compares with a baseline in the same run and prints a ratio; `make bench` runs them all."""
