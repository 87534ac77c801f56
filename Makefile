.PHONY: demo test slow bench gpu format check

demo:      ## train the default net on the embedded digits
	dcgan-fast train

test:      ## the quick tests
	pytest

slow:      ## the long ones
	pytest -m slow

bench:     ## every benchmark; the figures as JSON
	pytest benchmarks/ --benchmark-only --benchmark-json=benchmarks/results/latest.json

gpu:       ## on a machine with a GPU: build, then the tests, those on CUDA tensors among them
	DCGAN_FAST_CUDA=1 pip install --no-build-isolation --no-deps .
	pytest

format:    ## rewrite imports and style
	ruff check --fix . && ruff format .

check:     ## what CI checks beside the tests
	ruff check . && ruff format --check . && mypy
