output "public_subnet_id" {
  description = "The instance's subnet."
  value       = aws_subnet.public.id

  depends_on = [aws_route_table_association.public] # a machine that starts before its route finds no packages
}

output "private_subnet_ids" {
  description = "The database's subnets, in two zones."
  value       = aws_subnet.private[*].id
}

output "instance_security_group_id" {
  description = "The instance's security group."
  value       = aws_security_group.instance.id
}

output "database_security_group_id" {
  description = "The database's security group."
  value       = aws_security_group.database.id
}
