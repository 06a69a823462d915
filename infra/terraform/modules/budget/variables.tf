variable "name" {
  description = "Prefix of the budget's name."
  type        = string
}

variable "emails" {
  description = "Mail addresses that are told."
  type        = list(string)
}

variable "thresholds_usd" {
  description = "Dollars a month at which they are told, rising; the last one is the budget."
  type        = list(number)
}
