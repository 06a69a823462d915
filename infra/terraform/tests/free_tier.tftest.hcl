# `terraform init && terraform test` needs the provider, but no account and no credentials. The modules database and
# compute are not planned here: Terraform cannot mock ephemeral resources, which their secrets come from.

mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }

  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c"] }
  }

  mock_data "aws_ec2_instance_type_offerings" {
    defaults = { locations = ["us-east-1c", "us-east-1b"] }
  }
}

run "the_budget_mails_at_10_25_and_50_dollars" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    name           = "test"
    emails         = ["you@example.org"]
    thresholds_usd = [10, 25, 50]
  }

  assert {
    condition     = toset([for mail in aws_budgets_budget.monthly.notification : mail.threshold if mail.notification_type == "ACTUAL"]) == toset([10, 25, 50])
    error_message = "the alarms are not at 10, 25 and 50 dollars"
  }

  assert {
    condition     = tonumber(aws_budgets_budget.monthly.limit_amount) == 50
    error_message = "the budget is not the last threshold"
  }
}

run "the_instance_goes_where_there_is_its_kind_and_the_database_to_two_zones" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    name          = "test"
    region        = "us-east-1"
    instance_type = "t3.micro"
  }

  assert {
    condition     = aws_subnet.public.availability_zone == "us-east-1b"
    error_message = "the public subnet is in a zone without the instance's kind"
  }

  assert {
    condition     = toset(aws_subnet.private[*].availability_zone) == toset(["us-east-1b", "us-east-1c"])
    error_message = "the private subnets are not in two zones"
  }
}

run "nothing_may_come_in_from_outside" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    name          = "test"
    region        = "us-east-1"
    instance_type = "t3.micro"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.cidr_ipv4 == null && aws_subnet.public.map_public_ip_on_launch == false
    error_message = "something is open to addresses outside"
  }
}

run "the_bucket_is_private_encrypted_and_keeps_versions" {
  command = plan

  module {
    source = "./modules/storage"
  }

  variables {
    bucket_name         = "test-bucket"
    checkpoint_days     = 30
    noncurrent_days     = 30
    delete_with_content = false
  }

  assert {
    condition     = aws_s3_bucket_public_access_block.this.block_public_policy && aws_s3_bucket_public_access_block.this.restrict_public_buckets
    error_message = "the bucket can be made public"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "the bucket keeps no versions"
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.expiration[0].days if rule.id == "checkpoints"]) == 30
    error_message = "checkpoints do not expire"
  }
}
