"""The training settings: bounds, descriptions and the learning rate schedule."""

import pytest

from core import errors
from core.training.config import TrainingConfig, describe_range, parse_training_config


def test_settings_are_parsed_from_texts() -> None:
    config = parse_training_config(
        {"epochs": "3", "batch_norm": "true", "width": "0.25", "schedule": "cosine"}
    )

    assert (config.epochs, config.batch_norm, config.width, config.schedule) == (
        3,
        True,
        0.25,
        "cosine",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "0"}, "epochs must be a whole number from 1 to 10000."),
        ({"learning_rate": "nan"}, "learning_rate must be a number from over 0 to 100."),
        ({"momentum": "1"}, "momentum must be a number from 0 to under 1."),
        ({"init": "xavier"}, "init must be one of he, gaussian."),
        ({"batch_norm": "perhaps"}, "batch_norm must be true or false."),
        ({"epoch": "3"}, "There is no such setting"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_setting_name(
    values: dict[str, str], message: str
) -> None:
    with pytest.raises(errors.BadSpec, match=message):
        parse_training_config(values)


def test_every_setting_describes_its_range() -> None:
    assert all(
        describe_range(name) and field.description
        for name, field in TrainingConfig.model_fields.items()
    )


def test_the_step_schedule_divides_the_rate_by_ten() -> None:
    config = TrainingConfig(learning_rate=0.01, step_epochs=2, epochs=5)
    rates = [config.rate(step, 10) for step in (0, 19, 20, 39, 40)]

    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_the_rate_rises_in_the_warm_up_and_then_falls_along_a_cosine_to_zero() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_epochs=2, epochs=10)
    rates = [config.rate(step, 10) for step in range(100)]

    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert [rates[20], rates[60]] == pytest.approx([1.0, 0.5])
    assert 0 < rates[99] < 0.001
    assert 0 < rates[0] < 0.05
