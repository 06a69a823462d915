variable "bucket_name" {
  description = "The bucket's name, unique in all of AWS."
  type        = string
}

variable "checkpoint_days" {
  description = "Days after which checkpoints are deleted."
  type        = number
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects are kept."
  type        = number
}

variable "delete_with_content" {
  description = "Whether the bucket is deleted though there is something in it."
  type        = bool
}
