# The tracking server's own two secrets. Made here, kept in Parameter Store, and in no plan and no state.

ephemeral "aws_secretsmanager_random_password" "admin" {
  password_length     = 24
  exclude_punctuation = true # a person copies it
}

resource "aws_ssm_parameter" "admin_password" {
  #checkov:skip=CKV_AWS_337:The key aws/ssm is free and the account's own; a key of one's own costs 1 USD a month.
  name             = "/${var.name}/mlflow-admin-password"
  description      = "First password of MLflow's user admin"
  type             = "SecureString"
  value_wo         = ephemeral.aws_secretsmanager_random_password.admin.random_password
  value_wo_version = 1
}

ephemeral "aws_secretsmanager_random_password" "cookie" {
  password_length     = 48
  exclude_punctuation = true
}

resource "aws_ssm_parameter" "cookie_key" {
  #checkov:skip=CKV_AWS_337:The key aws/ssm is free and the account's own; a key of one's own costs 1 USD a month.
  name             = "/${var.name}/mlflow-cookie-key"
  description      = "Signs MLflow's cookies"
  type             = "SecureString"
  value_wo         = ephemeral.aws_secretsmanager_random_password.cookie.random_password
  value_wo_version = 1
}
