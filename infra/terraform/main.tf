# One small machine, a database for MLflow, a bucket, and an alarm before they cost too much. README.md tells the rest.

data "aws_caller_identity" "current" {}

locals {
  bucket_name = coalesce(var.bucket_name, "${var.name}-${data.aws_caller_identity.current.account_id}-${var.region}")
}

module "budget" {
  source = "./modules/budget"

  name           = var.name
  emails         = var.budget_emails
  thresholds_usd = var.budget_thresholds_usd
}

module "network" {
  source = "./modules/network"

  name          = var.name
  region        = var.region
  instance_type = var.instance_type
}

module "storage" {
  source = "./modules/storage"

  bucket_name         = local.bucket_name
  checkpoint_days     = var.checkpoint_days
  noncurrent_days     = var.noncurrent_days
  delete_with_content = var.delete_bucket_with_content
}

module "database" {
  source = "./modules/database"

  name                = var.name
  subnet_ids          = module.network.private_subnet_ids
  security_group_id   = module.network.database_security_group_id
  instance_class      = var.database_instance_class
  backup_days         = var.database_backup_days
  deletion_protection = var.database_deletion_protection
  final_snapshot      = var.database_final_snapshot
  password_version    = var.database_password_version
}

module "compute" {
  source = "./modules/compute"

  name                = var.name
  region              = var.region
  subnet_id           = module.network.public_subnet_id
  security_group_id   = module.network.instance_security_group_id
  instance_type       = var.instance_type
  cpu_credits         = var.cpu_credits
  root_volume_gb      = var.root_volume_gb
  swap_gb             = var.swap_gb
  idle_minutes        = var.idle_minutes
  repository_url      = var.repository_url
  repository_ref      = var.repository_ref
  torch_cpu_index_url = var.torch_cpu_index_url
  bucket              = module.storage.bucket
  database            = module.database.connection
}
