"""What Terraform would refuse is one line that names the variable, its value, and what would be right."""

import pytest

from infra.settings import TERRAFORM, read_settings, read_variables
from infra.values import CONDITIONS, check_values


@pytest.fixture(scope="module")
def settings():
    return read_settings(TERRAFORM / "terraform.tfvars.example")


def test_the_example_is_right(settings):
    assert list(check_values(settings)) == []


def test_every_validation_of_terraforms_is_checked_here_too():
    assert {name: len(conditions) for name, conditions in CONDITIONS.items()} == {
        name: len(variable["validation"]) for name, variable in read_variables().items() if "validation" in variable
    }


@pytest.mark.parametrize(
    ("name", "value", "shown", "said"),
    [
        ("name", None, "null", "name must be 3 to 20 lower-case letters"),
        ("name", "Capital", '"Capital"', "name must be 3 to 20 lower-case letters"),
        ("name", "ends-\n", '"ends-\\n"', "name must be 3 to 20 lower-case letters"),
        ("region", "", '""', "region must be the name of an AWS region, such as us-east-1."),
        ("budget_emails", [], "[]", "budget_emails needs one to ten mail addresses"),
        ("budget_emails", ["a@b.test"] * 11, "", "budget_emails needs one to ten mail addresses"),
        ("budget_emails", "you@gpt.test", '"you@gpt.test"', "budget_emails needs one to ten mail addresses"),
        ("budget_emails", ["nobody"], '["nobody"]', "budget_emails must hold mail addresses"),
        ("budget_emails", ["a b@gpt.test"], '["a b@gpt.test"]', "budget_emails must hold mail addresses"),
        ("budget_thresholds_usd", "x", '"x"', "budget_thresholds_usd needs one to four positive numbers"),
        ("budget_thresholds_usd", ["x"], '["x"]', "budget_thresholds_usd needs one to four positive numbers"),
        ("budget_thresholds_usd", [0], "[0]", "budget_thresholds_usd needs one to four positive numbers"),
        ("budget_thresholds_usd", [50, 10], "[50, 10]", "budget_thresholds_usd must rise"),
        ("repository_url", "http://h/x", '"http://h/x"', "repository_url must begin with https://"),
        ("repository_url", "https://me:pw@h/x", '"https://h/x"', "repository_url must not hold a user or a password"),
        ("repository_ref", "", '""', "repository_ref must be a commit's full hash of 40 digits"),
        ("repository_ref", "main", '"main"', "repository_ref must be a commit's full hash of 40 digits"),
        ("torch_cpu_index_url", "", '""', "torch_cpu_index_url must begin with https://"),
        ("instance_type", "t9.huge", '"t9.huge"', "instance_type must be t2.micro or t3.micro"),
        ("cpu_credits", "some", '"some"', "cpu_credits must be standard or unlimited."),
        ("root_volume_gb", None, "null", "root_volume_gb must be a whole number from 16 to 30."),
        ("root_volume_gb", "thirty", '"thirty"', "root_volume_gb must be a whole number from 16 to 30."),
        ("root_volume_gb", True, "true", "root_volume_gb must be a whole number from 16 to 30."),
        ("root_volume_gb", 20.5, "20.5", "root_volume_gb must be a whole number from 16 to 30."),
        ("swap_gb", 5, "5", "swap_gb must be a whole number from 1 to 4."),
        ("idle_minutes", -5, "-5", "idle_minutes must be 0 (never) or a whole number from 15 to 1440."),
        ("idle_minutes", 1, "1", "idle_minutes must be 0 (never) or a whole number from 15 to 1440."),
        ("bucket_name", "", '""', "bucket_name must be 3 to 63 lower-case letters"),
        ("checkpoint_days", 0, "0", "checkpoint_days must be a whole number, at least 1."),
        ("noncurrent_days", 0, "0", "noncurrent_days must be a whole number, at least 1."),
        ("delete_bucket_with_content", "yes", '"yes"', "delete_bucket_with_content must be a bool."),
        ("database_deletion_protection", None, "null", "database_deletion_protection must be a bool."),
        ("database_instance_class", "db.r6g.16xlarge", '"db.r6g.16xlarge"', "database_instance_class must be db.t3"),
        ("database_backup_days", 36, "36", "database_backup_days must be a whole number from 0 to 35."),
        ("database_password_version", 0, "0", "database_password_version must be a whole number, at least 1."),
    ],
)
def test_a_wrong_value_is_one_line(settings, name, value, shown, said):
    (finding,) = check_values(settings | {name: value})
    assert (finding.status, finding.check) == ("fail", "settings")
    assert finding.text.startswith(f"{name} is {shown}")
    assert f"; {said}" in finding.text
    assert "\n" not in finding.text


def test_values_are_converted_as_terraform_does(tmp_path):
    file = tmp_path / "terraform.tfvars"
    given = 'root_volume_gb = "20"\nbudget_thresholds_usd = ["5", 7.5]\ndatabase_final_snapshot = "false"\n'
    file.write_text((TERRAFORM / "terraform.tfvars.example").read_text() + given)
    settings = read_settings(file)
    assert settings["root_volume_gb"] == 20
    assert settings["budget_thresholds_usd"] == [5, 7.5]
    assert settings["database_final_snapshot"] is False
    assert list(check_values(settings)) == []
