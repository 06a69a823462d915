variable "name" {
  description = "Prefix of the names."
  type        = string
}

variable "region" {
  description = "The region, for the AWS command line on the instance."
  type        = string
}

variable "subnet_id" {
  description = "A subnet with a way out."
  type        = string
}

variable "security_group_id" {
  description = "The instance's security group."
  type        = string
}

variable "instance_type" {
  description = "The machine."
  type        = string
}

variable "cpu_credits" {
  description = "standard or unlimited."
  type        = string
}

variable "root_volume_gb" {
  description = "Size of the disk in GB."
  type        = number
}

variable "swap_gb" {
  description = "Swap in GB."
  type        = number
}

variable "idle_minutes" {
  description = "Idle minutes after which the instance stops itself; 0 for never."
  type        = number
}

variable "repository_url" {
  description = "Address of the project's repository."
  type        = string
}

variable "repository_ref" {
  description = "Tag or commit of it."
  type        = string
}

variable "torch_cpu_index_url" {
  description = "PyTorch's index of CPU wheels."
  type        = string
}

variable "bucket" {
  description = "The bucket."
  type = object({
    name = string
    arn  = string
  })
}

variable "database" {
  description = "How to reach the database, and the parameter that holds the password."
  type = object({
    host               = string
    port               = number
    name               = string
    user               = string
    password_parameter = string
    password_arn       = string
  })
}
