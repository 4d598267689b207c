.PHONY: check format lint types imports test slow recipes reference

check: lint types imports test recipes  ## all that .ci/run checks, in this environment

format:  ## rewrite the files as ruff would have them
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

imports:
	lint-imports

test:
	pytest

slow:
	pytest -m slow

recipes:  ## every shipped recipe resolves
	@for recipe in recipes/*.toml recipes/*.yaml; do \
		[ -e "$$recipe" ] || continue; \
		sftctl config check "$$recipe" || exit 1; \
	done
