.PHONY: demo test slow bench bench-report gpu format check docs

demo:      ## train the default net on the embedded digits
	dcgan-fast train

test:      ## the quick tests
	pytest

slow:      ## the long ones
	pytest -m slow

# glibc returns large blocks to the system when they are freed, so each new map is faulted in page by page. The figures
# are for an allocator that keeps its pages, for all contenders; and once as a user runs it.
RESULTS = benchmarks/results
PAGES_KEPT = MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
BENCH = pytest --benchmark-only --benchmark-quiet

bench:     ## every benchmark, half an hour on 2 cores; the figures as JSON, also of a run that is interrupted
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_train.py --benchmark-json=$(RESULTS)/train.json
	$(BENCH) benchmarks/bench_train.py -k "pytorch-64-batch-128" --benchmark-json=$(RESULTS)/train-default-allocator.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_step.py --benchmark-json=$(RESULTS)/step.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_infer.py --benchmark-json=$(RESULTS)/infer.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_ops.py --benchmark-json=$(RESULTS)/layers.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_dedup.py --benchmark-json=$(RESULTS)/dedup.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_metrics.py --benchmark-json=$(RESULTS)/metrics.json
	$(PAGES_KEPT) $(BENCH) benchmarks/bench_features.py --benchmark-json=$(RESULTS)/features.json

bench-report:  ## the figures as tables and pictures: benchmarks/results/report.md
	dcgan-fast bench --report $(RESULTS)

gpu:       ## on a machine with a GPU: build, tests on CUDA tensors, compute-sanitizer, benchmarks; results to commit
	.ci/gpu $(RESULTS)

format:    ## rewrite imports and style
	ruff check --fix . && ruff format .

check:     ## what CI checks beside the tests
	ruff check . && ruff format --check . && mypy

docs:      ## the documentation as a site: docs/_build/index.html
	sphinx-build -W --keep-going docs docs/_build
