variable "name" {
  description = "The database's identifier and the prefix of its secret."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in two zones."
  type        = list(string)
}

variable "security_group_id" {
  description = "Who may reach it."
  type        = string
}

variable "engine_version" {
  description = "PostgreSQL's major version."
  type        = string
  default     = "17"
}

variable "instance_class" {
  description = "The machine."
  type        = string
}

variable "storage_gb" {
  description = "Storage in GB; 20 is RDS's least."
  type        = number
  default     = 20
}

variable "backup_days" {
  description = "Days of automatic backups."
  type        = number
}

variable "deletion_protection" {
  description = "Whether AWS refuses to delete it."
  type        = bool
}

variable "final_snapshot" {
  description = "Whether a last snapshot is kept when it is destroyed."
  type        = bool
}

variable "password_version" {
  description = "A new number gives it a new password."
  type        = number
}
