variable "name" {
  description = "Name of everything that is made, and its prefix: 3 to 20 lower-case letters, digits and hyphens."
  type        = string
  default     = "aic-gpt"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 20 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen."
  }
}

variable "region" {
  description = "AWS region, one that the account has opted into."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be the name of an AWS region, such as us-east-1."
  }
}

variable "budget_emails" {
  description = "Mail addresses that the budget's alarms go to, one to ten."
  type        = list(string)

  validation {
    condition     = length(var.budget_emails) >= 1 && length(var.budget_emails) <= 10
    error_message = "budget_emails needs one to ten mail addresses: nobody would read an alarm without one."
  }

  validation {
    condition     = alltrue([for address in var.budget_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+[.][^@[:space:]]+$", address))])
    error_message = "budget_emails must hold mail addresses, such as you@example.org."
  }
}

variable "budget_thresholds_usd" {
  description = "Dollars a month at which an alarm is mailed, one to four, rising; the last one is the budget."
  type        = list(number)
  default     = [10, 25, 50]

  validation {
    condition     = length(var.budget_thresholds_usd) >= 1 && length(var.budget_thresholds_usd) <= 4 && alltrue([for amount in var.budget_thresholds_usd : amount > 0])
    error_message = "budget_thresholds_usd needs one to four positive numbers (AWS allows five notifications; the fifth is the forecast's)."
  }

  validation {
    condition     = join(",", sort(formatlist("%012.2f", var.budget_thresholds_usd))) == join(",", formatlist("%012.2f", var.budget_thresholds_usd))
    error_message = "budget_thresholds_usd must rise: the last one is the budget."
  }
}

variable "repository_url" {
  description = "Address of this project's repository, which the instance can read without credentials: https://..."
  type        = string

  validation {
    condition     = can(regex("^https://[A-Za-z0-9._~:/@%+-]+$", var.repository_url))
    error_message = "repository_url must begin with https:// and hold no spaces or quotes."
  }

  validation {
    condition     = !can(regex("//[^/]*@", var.repository_url))
    error_message = "repository_url must not hold a user or a password: it would lie readable in the instance's user data."
  }
}

variable "repository_ref" {
  description = "What of the repository is installed: a tag or a commit's full hash, never a branch that moves."
  type        = string

  validation {
    condition     = can(regex("^([0-9a-f]{40}|v[0-9]+[.][0-9]+[.][0-9]+[A-Za-z0-9.-]*)$", var.repository_ref))
    error_message = "repository_ref must be a commit's full hash of 40 digits, or a version's tag such as v0.1.0."
  }
}

variable "torch_cpu_index_url" {
  description = "PyTorch's index of CPU wheels; their \"Get Started\" page names it (Linux, Pip, CPU). Without it pip takes the CUDA build of several GB."
  type        = string

  validation {
    condition     = can(regex("^https://[A-Za-z0-9._~:/%+-]+$", var.torch_cpu_index_url))
    error_message = "torch_cpu_index_url must begin with https:// and hold no spaces or quotes."
  }
}

variable "instance_type" {
  description = "The machine: t3.micro, or t2.micro where an old account's free tier has only that."
  type        = string
  default     = "t3.micro"

  validation {
    condition     = contains(["t2.micro", "t3.micro"], var.instance_type)
    error_message = "instance_type must be t2.micro or t3.micro; no other of 1 GiB has been free for x86-64."
  }
}

variable "cpu_credits" {
  description = "standard: never costs more, but slows to a fifth of a core when the credits are used up. unlimited: goes on at full speed for 0.05 USD a vCPU-hour."
  type        = string
  default     = "standard"

  validation {
    condition     = contains(["standard", "unlimited"], var.cpu_credits)
    error_message = "cpu_credits must be standard or unlimited."
  }
}

variable "root_volume_gb" {
  description = "Size of the instance's disk in GB. The system, the environments and the swap take about 9; an old free tier holds 30."
  type        = number
  default     = 20

  validation {
    condition     = var.root_volume_gb >= 16 && var.root_volume_gb <= 30 && floor(var.root_volume_gb) == var.root_volume_gb
    error_message = "root_volume_gb must be a whole number from 16 to 30."
  }
}

variable "swap_gb" {
  description = "Swap in GB. With 1 GiB of memory, two carry the tracking server through a pipeline's largest stage."
  type        = number
  default     = 2

  validation {
    condition     = var.swap_gb >= 1 && var.swap_gb <= 4 && floor(var.swap_gb) == var.swap_gb
    error_message = "swap_gb must be a whole number from 1 to 4."
  }
}

variable "idle_minutes" {
  description = "The instance stops itself after so many minutes without a pipeline, a session or load; 0 leaves it running."
  type        = number
  default     = 60

  validation {
    condition     = var.idle_minutes == 0 || (var.idle_minutes >= 15 && var.idle_minutes <= 1440 && floor(var.idle_minutes) == var.idle_minutes)
    error_message = "idle_minutes must be 0 (never) or a whole number from 15 to 1440."
  }
}

variable "bucket_name" {
  description = "Name of the bucket, unique in all of AWS. Without one: the name, the account's number and the region."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must be 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "checkpoint_days" {
  description = "Days after which a run's checkpoints (under checkpoints/) are deleted; the models that came of them stay."
  type        = number
  default     = 30

  validation {
    condition     = var.checkpoint_days >= 1 && floor(var.checkpoint_days) == var.checkpoint_days
    error_message = "checkpoint_days must be a whole number, at least 1."
  }
}

variable "noncurrent_days" {
  description = "Days for which what was overwritten or deleted in the bucket can still be had back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days must be a whole number, at least 1."
  }
}

variable "delete_bucket_with_content" {
  description = "Whether terraform destroy deletes the bucket though there is something in it."
  type        = bool
  default     = false
}

variable "database_instance_class" {
  description = "The database's machine: db.t4g.micro or db.t3.micro."
  type        = string
  default     = "db.t4g.micro"

  validation {
    condition     = contains(["db.t3.micro", "db.t4g.micro"], var.database_instance_class)
    error_message = "database_instance_class must be db.t3.micro or db.t4g.micro; larger ones are not free."
  }
}

variable "database_backup_days" {
  description = "Days of automatic backups. Accounts on AWS's free plan are refused more than a few; 0 switches backups off."
  type        = number
  default     = 1

  validation {
    condition     = var.database_backup_days >= 0 && var.database_backup_days <= 35 && floor(var.database_backup_days) == var.database_backup_days
    error_message = "database_backup_days must be a whole number from 0 to 35."
  }
}

variable "database_deletion_protection" {
  description = "Whether AWS refuses to delete the database. Set it to false and apply before terraform destroy."
  type        = bool
  default     = true
}

variable "database_final_snapshot" {
  description = "Whether a last snapshot is kept when the database is destroyed; it costs by the GB until it is deleted."
  type        = bool
  default     = true
}

variable "database_password_version" {
  description = "Raise it by one and apply to give the database a new password; then restart the tracking server."
  type        = number
  default     = 1

  validation {
    condition     = var.database_password_version >= 1 && floor(var.database_password_version) == var.database_password_version
    error_message = "database_password_version must be a whole number, at least 1."
  }
}
