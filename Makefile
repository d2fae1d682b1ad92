PYTHON ?= python

.PHONY: check lint types imports test parity mutants bench size

check: lint types imports test  ## what a commit must pass

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

imports:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

test:
	$(PYTHON) -m pytest -m "not parity"  # with what is marked device or slow, which pytest alone leaves out

parity:  ## against torch and transformers, extra "parity"
	$(PYTHON) -m pytest -m parity

thorough:  ## at least 300 drawn cases an op
	$(PYTHON) -m pytest --hypothesis-profile=thorough tests/autograd tests/kernels

mutants:  ## how many planted faults the gradient suite notices; needs the extra "dev"
	$(PYTHON) -m bench.mutants

bench:
	$(PYTHON) -m bench

size:  ## lines per folder, to look at
	@for d in tinyplm tinyplm/*/ tinyplm/autograd/ops tests bench; do \
	  printf '%6d  %s\n' "$$(find $$d -maxdepth 1 -name '*.py' -exec cat {} + | wc -l)" "$$d"; done
