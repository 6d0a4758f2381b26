"""What every process shares.

The one rule: torch is imported only under core/neural; api, worker and cli meet only here.
core knows no web framework and holds no Celery task. `lint-imports` (pyproject.toml) keeps the rule.
"""
