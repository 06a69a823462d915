# PostgreSQL for MLflow. Its password is made here, goes to Parameter Store, and is in no plan and no state.

resource "aws_db_subnet_group" "this" {
  name        = var.name
  description = "Subnets without a way out"
  subnet_ids  = var.subnet_ids
}

resource "aws_db_parameter_group" "this" {
  name_prefix = "${var.name}-"
  family      = "postgres${var.engine_version}"
  description = "TLS only; slow statements and changes of tables in the log"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_statement"
    value = "ddl"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000" # milliseconds
  }

  lifecycle {
    create_before_destroy = true
  }
}

ephemeral "aws_secretsmanager_random_password" "new" {
  password_length     = 48
  exclude_punctuation = true # it becomes part of an address
}

# A parameter is free; a secret of Secrets Manager costs 0.40 USD a month. The AWS-managed key is free as well.
resource "aws_ssm_parameter" "password" {
  #checkov:skip=CKV_AWS_337:The key aws/ssm is free and the account's own; a key of one's own costs 1 USD a month.
  name             = "/${var.name}/database-password"
  description      = "Password of the database's user ${local.user}"
  type             = "SecureString"
  value_wo         = ephemeral.aws_secretsmanager_random_password.new.random_password
  value_wo_version = var.password_version
}

# Read back, so that an apply that fails half-way and is repeated gives the database what the parameter holds.
ephemeral "aws_ssm_parameter" "password" {
  arn = aws_ssm_parameter.password.arn
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_118:Enhanced monitoring is billed as CloudWatch logs; the free metrics of every minute are enough here.
  #checkov:skip=CKV_AWS_129:Exported logs are billed by CloudWatch; RDS itself keeps them for three days.
  #checkov:skip=CKV_AWS_157:A second zone doubles the cost; a backup restores what one small team can miss for an hour.
  #checkov:skip=CKV_AWS_161:The tracking server has a password, over TLS; it could not renew a token of fifteen minutes.
  #checkov:skip=CKV_AWS_293:Deletion protection is a variable and true unless somebody says otherwise.
  #checkov:skip=CKV_AWS_353:Performance Insights is of no use to a database that only keeps books.
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.engine_version # the newest minor version of it
  instance_class = var.instance_class
  multi_az       = false

  allocated_storage = var.storage_gb
  storage_type      = "gp2" # costs what gp3 does, and has always been what the free tier names
  storage_encrypted = true

  db_name              = local.database
  username             = local.user
  password_wo          = ephemeral.aws_ssm_parameter.password.value
  password_wo_version  = aws_ssm_parameter.password.value_wo_version
  parameter_group_name = aws_db_parameter_group.this.name
  ca_cert_identifier   = "rds-ca-rsa2048-g1"

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [var.security_group_id]
  publicly_accessible    = false

  backup_retention_period    = var.backup_days
  copy_tags_to_snapshot      = true
  auto_minor_version_upgrade = true
  deletion_protection        = var.deletion_protection
  skip_final_snapshot        = !var.final_snapshot
  final_snapshot_identifier  = var.final_snapshot ? "${var.name}-final" : null
}

locals {
  database = "mlflow"
  user     = "mlflow"
}
