"""What the modules promise, read from their text; where Terraform is installed, by itself what needs no provider."""

import functools
import json
import re
import shutil
import subprocess

import hcl2
import pytest
import yaml

from infra.settings import TERRAFORM

FILES = sorted(TERRAFORM.rglob("*.tf"))
MODULES = sorted({file.parent for file in FILES})
COMPUTE = TERRAFORM / "modules" / "compute"
needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
LINE = "{}: {}"


@functools.cache
def parsed(file):
    return hcl2.loads(file.read_text())


def blocks(kind, module):
    """``(name of type, name, body)`` of each resource or the like of a module; text values keep their quotes."""
    for file in sorted(module.glob("*.tf")):
        for entry in parsed(file).get(kind, []):
            for first, inner in entry.items():
                for second, body in inner.items() if isinstance(inner, dict) and kind in ("resource", "data") else ():
                    yield first.strip('"'), second.strip('"'), body


def resources(kind):
    """The bodies of every resource of a type in all modules."""
    return [body for module in MODULES for name, _, body in blocks("resource", module) if name == kind]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TERRAFORM)))
def test_every_file_is_terraform_and_laid_out_as_the_language_wants_it(file):
    text = file.read_text()
    assert parsed(file)
    for number, line in enumerate(text.splitlines(), start=1):
        assert line == line.rstrip(), LINE.format(number, "blanks at the end")
        assert "\t" not in line, LINE.format(number, "a tab")
        assert (len(line) - len(line.lstrip())) % 2 == 0, LINE.format(number, "indented by an odd number")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_module_pins_its_provider_and_describes_its_variables_and_outputs(module):
    versions = (module / "versions.tf").read_text()
    assert 'version = "~> 6.0"' in versions
    assert 'required_version = ">= 1.11"' in versions
    for kind in ("variable", "output"):
        text = "\n".join(file.read_text() for file in module.glob("*.tf"))
        for body in re.findall(rf'^{kind} "[^"]+" {{\n(.*?)^}}', text, flags=re.MULTILINE | re.DOTALL):
            assert re.search(r'^  description = "\S', body, flags=re.MULTILINE), body


def test_every_exception_from_checkovs_rules_gives_its_reason():
    exceptions = [match for file in FILES for match in re.findall(r"#checkov:skip=.*", file.read_text())]
    assert len(exceptions) > 10
    for exception in exceptions:
        assert re.fullmatch(r"#checkov:skip=CKV2?_AWS_\d+:\S.{20,}", exception), exception


def test_nothing_may_come_in_but_postgresql_from_the_instance():
    (rule,) = resources("aws_vpc_security_group_ingress_rule")
    assert rule["referenced_security_group_id"] == "${aws_security_group.instance.id}"
    assert (rule["from_port"], rule["to_port"]) == (5432, 5432)
    assert not any("cidr" in key for key in rule)
    assert all("ingress" not in body for body in resources("aws_security_group"))


def test_secrets_are_made_ephemeral_and_written_by_write_only_arguments():
    (database,) = resources("aws_db_instance")
    assert "password_wo" in database
    assert "password" not in database
    parameters = resources("aws_ssm_parameter")
    assert len(parameters) == 3
    for parameter in parameters:
        assert parameter["type"] == '"SecureString"'
        assert parameter["value_wo"].startswith("${ephemeral.")
        assert "value" not in parameter
    assert not [body for module in MODULES for name, _, body in blocks("resource", module) if "secretsmanager" in name]


def test_the_instance_stops_when_it_shuts_down_and_its_disk_and_metadata_are_guarded():
    (instance,) = resources("aws_instance")
    assert instance["instance_initiated_shutdown_behavior"] == '"stop"'
    assert instance["metadata_options"][0]["http_tokens"] == '"required"'
    assert instance["root_block_device"][0]["encrypted"] is True
    assert "key_name" not in instance


def test_the_role_may_touch_its_bucket_and_three_parameters_and_nothing_else():
    documents = {name: body for kind, name, body in blocks("data", COMPUTE) if kind == "aws_iam_policy_document"}
    for name, document in documents.items():
        for statement in document["statement"]:
            assert not any(action.strip('"').endswith("*") for action in statement["actions"]), name
            wide = '"*"' in statement.get("resources", [])
            assert wide == (name == "session"), name
    assert len(documents["secrets"]["statement"][0]["resources"]) == 3
    assert resources("aws_iam_role_policy_attachment") == []


# --- by Terraform itself


@pytest.fixture(scope="module")
def terraform(tmp_path_factory):
    """Runs Terraform in a folder with the given files; no provider is needed, and none is asked for."""

    def terraform(*words, files, stdin=None):
        folder = tmp_path_factory.mktemp("terraform")
        for name, text in files.items():
            (folder / name).write_text(text)
        done = subprocess.run(
            ["terraform", *words], cwd=folder, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    return terraform


GOOD = {
    "budget_emails": ["you@gpt.test"],
    "repository_url": "https://git.gpt.test/x.git",
    "repository_ref": "v0.1.0",
    "torch_cpu_index_url": "https://index.gpt.test/cpu",
}
WRONG = {
    "instance_type": "t3.large",
    "database_instance_class": "db.m5.large",
    "root_volume_gb": 100,
    "swap_gb": 0.5,
    "idle_minutes": 5,
    "cpu_credits": "none",
    "name": "GPT",
    "region": "Frankfurt",
    "bucket_name": "My Bucket",
    "budget_emails": ["nobody"],
    "budget_thresholds_usd": [50, 10],
    "repository_ref": "main",
    "repository_url": "https://user:secret@git.gpt.test/x.git",
    "torch_cpu_index_url": 'https://x.test/"; reboot',
    "checkpoint_days": 0,
    "noncurrent_days": 1.5,
    "database_backup_days": 36,
    "database_password_version": 0,
}


@needs_terraform
def test_the_variables_take_the_example_and_refuse_each_wrong_value_by_name(terraform):
    variables = {"variables.tf": (TERRAFORM / "variables.tf").read_text()}
    example = (TERRAFORM / "terraform.tfvars.example").read_text()
    for tfvars in ({"terraform.tfvars": example}, {"terraform.tfvars.json": json.dumps(GOOD)}):
        status, said = terraform("plan", "-no-color", files=variables | tfvars)
        assert status == 0, said
    status, said = terraform("plan", "-no-color", files=variables | {"terraform.tfvars.json": json.dumps(GOOD | WRONG)})
    assert status == 1
    refused = set(re.findall(r"^[│ ]*(\w+) (?:must|needs)\b", said, flags=re.MULTILINE))
    assert refused == WRONG.keys()


@pytest.fixture(scope="module")
def user_data(terraform):
    """What cloud-init is given, rendered by Terraform from the module's own file."""
    text = (COMPUTE / "user_data.tf").read_text().replace("${path.module}/files", str(COMPUTE / "files"))
    text = re.sub(r"aws_ssm_parameter\.(\w+)\.name", r'"/test/\1"', text)
    given = GOOD | {
        **{
            "name": "test",
            "region": "us-east-1",
            "subnet_id": "s",
            "security_group_id": "g",
            "instance_type": "t3.micro",
        },
        **{"cpu_credits": "standard", "root_volume_gb": 20, "swap_gb": 2, "idle_minutes": 60},
        "bucket": {"name": "bucket", "arn": "arn:aws:s3:::bucket"},
        "database": {
            **{"host": "db.test", "port": 5432, "name": "mlflow", "user": "mlflow"},
            **{"password_parameter": "/test/database-password", "password_arn": "arn"},
        },
    }
    del given["budget_emails"]
    status, said = terraform(
        "console",
        files={
            "variables.tf": (COMPUTE / "variables.tf").read_text(),
            "user_data.tf": text,
            "terraform.tfvars.json": json.dumps(given),
        },
        stdin="jsonencode(local.user_data)\n",
    )
    assert status == 0, said
    return json.loads(json.loads(next(line for line in said.splitlines() if line.startswith('"'))))


@needs_terraform
def test_cloud_init_writes_the_scripts_as_they_are_and_runs_the_installation(user_data):
    first, _, rest = user_data.partition("\n")
    assert first == "#cloud-config"
    content = yaml.safe_load(rest)
    files = {file["path"]: file for file in content["write_files"]}
    assert files["/usr/bin/gpt-idle-stop"]["content"] == (COMPUTE / "files" / "idle-stop.sh").read_text()
    assert files["/etc/systemd/system/mlflow.service"]["content"] == (COMPUTE / "files" / "mlflow.service").read_text()
    assert len(files) == len(list((COMPUTE / "files").iterdir())) + 1
    assert all(file["permissions"] == "0755" for path, file in files.items() if path.startswith("/usr/bin/"))
    assert content["runcmd"] == [["/usr/bin/gpt-install"]]
    settings = dict(line.split("=", 1) for line in files["/etc/gpt/gpt.env"]["content"].splitlines())
    assert settings["GPT_DATABASE"] == "mlflow@db.test:5432/mlflow"
    assert settings["GPT_REPOSITORY_REF"] == "v0.1.0"
    assert settings["GPT_ADMIN_PASSWORD"] == "/test/admin_password"
    read_by_bash = subprocess.run(
        ["bash", "-c", f"set -eu; {files['/etc/gpt/gpt.env']['content']}\n printf %s $GPT_DATABASE"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read_by_bash.stdout == settings["GPT_DATABASE"]


@needs_terraform
def test_user_data_fits_what_aws_takes(user_data):
    assert len(user_data.encode()) < 16384


@needs_terraform
def test_terraforms_own_layout_is_kept():
    subprocess.run(["terraform", "fmt", "-check", "-recursive", TERRAFORM], check=True)
