output "instance_id" {
  description = "The instance."
  value       = module.compute.instance_id
}

output "bucket" {
  description = "The bucket: texts under corpus/, checkpoints/, runs/, and MLflow's artifacts under mlflow/."
  value       = module.storage.bucket.name
}

output "shell_command" {
  description = "Opens a shell on the instance, through Session Manager."
  value       = "aws ssm start-session --region ${var.region} --target ${module.compute.instance_id}"
}

output "ui_command" {
  description = "Brings MLflow's page to http://localhost:5000, for as long as it runs."
  value       = "aws ssm start-session --region ${var.region} --target ${module.compute.instance_id} --document-name AWS-StartPortForwardingSession --parameters portNumber=5000,localPortNumber=5000"
}

output "ui_password_command" {
  description = "Prints the password of MLflow's user admin."
  value       = "aws ssm get-parameter --region ${var.region} --with-decryption --name ${module.compute.admin_password_parameter} --query Parameter.Value --output text"
}

output "start_command" {
  description = "Starts the instance again after it has stopped itself."
  value       = "aws ec2 start-instances --region ${var.region} --instance-ids ${module.compute.instance_id}"
}

output "stop_commands" {
  description = "Stop the instance and the database; AWS starts a stopped database again after seven days."
  value = [
    "aws ec2 stop-instances --region ${var.region} --instance-ids ${module.compute.instance_id}",
    "aws rds stop-db-instance --region ${var.region} --db-instance-identifier ${module.database.identifier}",
  ]
}
