variable "name" {
  description = "Prefix of the names."
  type        = string
}

variable "region" {
  description = "The region, for the name of its S3."
  type        = string
}

variable "instance_type" {
  description = "The machine, whose zone is chosen so that there is one."
  type        = string
}

variable "cidr" {
  description = "Addresses of the network, a /16."
  type        = string
  default     = "10.20.0.0/16"
}
