"""The benchmark: divhook side by side with what people use instead. `make bench`; docs/benchmark.md says how."""
