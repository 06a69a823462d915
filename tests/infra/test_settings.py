"""The doctor reads what Terraform would be given."""

import pytest

from infra.settings import TERRAFORM, read_defaults, read_settings
from modelcore.errors import InputError

EXAMPLE = TERRAFORM / "terraform.tfvars.example"


def test_the_example_sets_all_that_has_no_default():
    settings = read_settings(EXAMPLE)
    assert settings["budget_emails"] == ["you@example.org"]
    assert settings["repository_ref"] == "v0.0.0-example"
    assert settings["instance_type"] == "t3.micro"
    assert settings["budget_thresholds_usd"] == [10, 25, 50]
    assert settings["bucket_name"] is None
    assert settings["database_deletion_protection"] is True


def test_values_come_before_defaults(tmp_path):
    file = tmp_path / "terraform.tfvars"
    file.write_text(EXAMPLE.read_text() + 'instance_type = "t2.micro"\nidle_minutes = 0\n')
    settings = read_settings(file)
    assert (settings["instance_type"], settings["idle_minutes"]) == ("t2.micro", 0)
    assert read_defaults()["instance_type"] == "t3.micro"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not set: budget_emails, repository_ref, repository_url, torch_cpu_index_url"),
        ('instance = "t3.micro"', "no such variable: instance"),
        ("instance_type = = 3", "no Terraform that can be read"),
        (b"\xff\xfe", "no Terraform that can be read"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, said):
    file = tmp_path / "my.tfvars"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as error:
        read_settings(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_file_it_says_what_to_copy(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; copy .*terraform.tfvars.example there"):
        read_settings(tmp_path / "terraform.tfvars")
